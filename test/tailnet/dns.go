// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
	"tailscale.com/tailcfg"
)

// dnsServer is authoritative for the TXT records that devices publish through
// the control server. The certificate authority validates against it.
type dnsServer struct {
	conn net.PacketConn
	done chan struct{}

	mu  sync.Mutex
	txt map[string][]string // by name in lower case, without the dot at its end
}

func startDNS() (*dnsServer, error) {
	conn, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &dnsServer{conn: conn, done: make(chan struct{}), txt: map[string][]string{}}
	go d.serve()
	return d, nil
}

func (d *dnsServer) addr() string { return d.conn.LocalAddr().String() }

func (d *dnsServer) close() error {
	err := d.conn.Close()
	<-d.done
	return err
}

func (d *dnsServer) serve() {
	defer close(d.done)
	buf := make([]byte, 4096)
	for {
		n, from, err := d.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if reply, err := d.answer(buf[:n]); err == nil {
			_, _ = d.conn.WriteTo(reply, from) // the resolver asks again
		}
	}
}

func (d *dnsServer) answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	r := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true}, Questions: m.Questions}
	for _, q := range m.Questions {
		if q.Type != dnsmessage.TypeTXT {
			continue
		}
		for _, v := range d.lookup(q.Name.String()) {
			r.Answers = append(r.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1},
				Body:   &dnsmessage.TXTResource{TXT: []string{v}},
			})
		}
	}
	return r.Pack()
}

func canonicalName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (d *dnsServer) lookup(name string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.txt[canonicalName(name)])
}

// maxTXT values are kept per name: more would not fit in a UDP answer.
const maxTXT = 4

func (d *dnsServer) add(name, value string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name = canonicalName(name)
	values := append(slices.DeleteFunc(d.txt[name], func(v string) bool { return v == value }), value)
	d.txt[name] = values[max(0, len(values)-maxTXT):]
}

// serveSetDNS publishes the answer to an ACME challenge. A device may do that
// for its own certificate names alone.
func (t *Tailnet) serveSetDNS(w http.ResponseWriter, r *http.Request) {
	var req tailcfg.SetDNSRequest
	if !readJSON(w, r, &req) {
		return
	}
	t.mu.Lock()
	n := t.nodes[req.NodeKey]
	var domains []string
	if n != nil {
		domains = t.certDomainsLocked(n)
	}
	t.mu.Unlock()
	domain, isChallenge := strings.CutPrefix(req.Name, "_acme-challenge.")
	switch {
	case n == nil || n.machine != machineOf(r):
		http.Error(w, "node not found", http.StatusForbidden)
	case req.Type != "TXT" || req.Value == "":
		http.Error(w, "only TXT records with a value can be set", http.StatusBadRequest)
	case !isChallenge || !slices.Contains(domains, canonicalName(domain)):
		http.Error(w, "name "+req.Name+" is not the challenge of a certificate domain of this node", http.StatusForbidden)
	default:
		t.names.add(req.Name, req.Value)
		writeJSON(w, http.StatusOK, tailcfg.SetDNSResponse{})
	}
}
