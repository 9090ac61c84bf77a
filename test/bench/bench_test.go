// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	mapsPath  = "/api/v1/namespaces/" + objects + "/configmaps"
	smallPath = mapsPath + "/" + small
	// From the API server's cache, as informers list.
	largePath = mapsPath + "?resourceVersion=0&labelSelector=" + largeLabel
)

const (
	getsPerRound     = 300 // by each way
	clients          = 64
	requestsPerRound = 5000 // by each way
	listsPerRound    = 5    // by each way
)

// connectAll makes a client for each way, and closes it with the benchmark.
func (s *stage) connectAll(ctx context.Context, b *testing.B, v version) []*connection {
	b.Helper()
	var all []*connection
	for _, w := range []*way{s.direct, s.floor, s.proxy} {
		c, err := w.connect(ctx, v)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(c.close)
		all = append(all, c)
	}
	return all
}

// BenchmarkGet measures the time of small gets, one at a time.
func BenchmarkGet(b *testing.B) {
	versions(b, func(b *testing.B, v version) {
		ctx, s := setUp(b)
		all, p50 := s.connectAll(ctx, b, v), figures{}
		for b.Loop() {
			times := figures{}
			for i := range getsPerRound {
				for _, c := range turns(all, i) {
					begin := time.Now()
					if _, err := c.get(ctx, smallPath); err != nil {
						b.Fatal(err)
					}
					times.add(c.way, time.Since(begin).Seconds()*1000)
				}
			}
			for _, c := range all {
				p50.add(c.way, median(times[c.name]))
			}
		}
		p50.report(b, "p50", "ms")
	})
}

// crowd are clients of one way, each with connections of its own.
type crowd struct {
	*way
	clients []*connection
}

// gather makes a crowd for each way.
func (s *stage) gather(ctx context.Context, b *testing.B, v version) []crowd {
	b.Helper()
	crowds := make([]crowd, 3)
	for range clients {
		for i, c := range s.connectAll(ctx, b, v) {
			crowds[i].way = c.way
			crowds[i].clients = append(crowds[i].clients, c)
		}
	}
	return crowds
}

// ask sends a number of small gets as fast as they are answered.
func (c crowd) ask(ctx context.Context, requests int64) error {
	group, ctx := errgroup.WithContext(ctx)
	var sent atomic.Int64
	for _, client := range c.clients {
		group.Go(func() error {
			for sent.Add(1) <= requests {
				if _, err := client.get(ctx, smallPath); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// BenchmarkRequests measures how many small gets many clients get answered, and the CPU
// time that they take in the middle.
func BenchmarkRequests(b *testing.B) {
	versions(b, func(b *testing.B, v version) {
		ctx, s := setUp(b)
		crowds, rate, cpu := s.gather(ctx, b, v), figures{}, figures{}
		for round := 0; b.Loop(); round++ {
			for _, c := range turns(crowds, round) {
				seconds, own, err := c.measure(ctx)
				if err != nil {
					b.Fatal(err)
				}
				rate.add(c.way, requestsPerRound/seconds)
				if c.process != nil {
					cpu.add(c.way, own/requestsPerRound*1000)
				}
			}
		}
		rate.report(b, "rate", "req/s")
		cpu.report(b, "cpu", "s/1000req")
	})
}

// measure returns the seconds that a round takes, and those of the CPU in the middle, if
// anything is there.
func (c crowd) measure(ctx context.Context) (seconds, cpu float64, err error) {
	var before, after float64
	if c.process != nil {
		if before, err = c.cpu(); err != nil {
			return 0, 0, err
		}
	}
	begin := time.Now()
	if err := c.ask(ctx, requestsPerRound); err != nil {
		return 0, 0, err
	}
	seconds = time.Since(begin).Seconds()
	if c.process != nil {
		after, err = c.cpu()
	}
	return seconds, after - before, err
}

// BenchmarkList measures how fast a large list comes.
func BenchmarkList(b *testing.B) {
	versions(b, func(b *testing.B, v version) {
		ctx, s := setUp(b)
		all, speed := s.connectAll(ctx, b, v), figures{}
		for b.Loop() {
			bytes, seconds := map[string]int64{}, map[string]float64{}
			for i := range listsPerRound {
				for _, c := range turns(all, i) {
					begin := time.Now()
					n, err := c.get(ctx, largePath)
					if err == nil && n < large*largeSize {
						err = fmt.Errorf("%s: the list has %d bytes only", c.name, n)
					}
					if err != nil {
						b.Fatal(err)
					}
					bytes[c.name] += n
					seconds[c.name] += time.Since(begin).Seconds()
				}
			}
			for _, c := range all {
				speed.add(c.way, float64(bytes[c.name])/1e6/seconds[c.name])
			}
		}
		speed.report(b, "list", "MB/s")
	})
}
