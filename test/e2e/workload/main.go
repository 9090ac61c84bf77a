// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command workload is what runs in the pods that the tests exec into. Its image holds
// nothing else: no shell, so that no image has to come from a registry.
//
// Without arguments it serves HTTP on port 8080, writes a numbered line every tenth of a
// second, and answers each line of its standard input. Called by another name (or with
// that name as its first argument), it does what this tool does, as far as kubectl needs:
// cat, echo, rm, tar and sha256sum.
package main

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	args := append([]string{filepath.Base(os.Args[0])}, os.Args[1:]...)
	if args[0] == "workload" && len(args) > 1 {
		args = args[1:]
	}
	var err error
	switch args[0] {
	case "cat":
		_, err = io.Copy(os.Stdout, os.Stdin)
	case "echo":
		fmt.Println(strings.Join(args[1:], " "))
	case "sha256sum":
		err = sum(args[1])
	case "rm":
		err = os.Remove(args[1]) //nolint:gosec // the caller's choice
	case "test": // kubectl cp asks whether its destination is a folder
		os.Exit(1)
	case "tar":
		err = archive(args[1:])
	default:
		err = serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, args[0]+":", err)
		os.Exit(1)
	}
}

// serve is the main process of a pod.
func serve() error {
	go func() {
		for i := 0; ; i++ {
			fmt.Println("line", i)
			time.Sleep(100 * time.Millisecond)
		}
	}()
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			fmt.Println("you said", lines.Text())
		}
	}()
	server := &http.Server{Addr: ":8080", ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello from the pod\n") // the client may be gone
	})}
	return server.ListenAndServe()
}

func sum(path string) error {
	f, err := os.Open(path) //nolint:gosec // the caller's choice
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	fmt.Printf("%x  %s\n", h.Sum(nil), path)
	return nil
}

// archive is tar, as kubectl cp calls it: "tar cf - FILE" and "tar -xmf - -C FOLDER".
func archive(args []string) error {
	var create bool
	folder, files := ".", []string{}
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "-C":
			i++
			folder = args[i]
		case i == 0:
			create = strings.Contains(args[i], "c")
		case args[i] != "-" && !strings.HasPrefix(args[i], "--"):
			files = append(files, args[i])
		}
	}
	if create {
		return pack(files)
	}
	return unpack(folder)
}

func pack(files []string) error {
	w := tar.NewWriter(os.Stdout)
	for _, name := range files {
		f, err := os.Open(name) //nolint:gosec // the caller's choice
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		header := &tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: 0o644, Size: info.Size(), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(header); err != nil {
			return errors.Join(err, f.Close())
		}
		_, err = io.Copy(w, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return w.Close()
}

func unpack(folder string) error {
	for r := tar.NewReader(os.Stdin); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, os.Stdin) // tar's padding
			return err
		}
		if err != nil {
			return err
		}
		f, err := os.Create(filepath.Join(folder, filepath.Base(header.Name))) //nolint:gosec // a base name
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r) //nolint:gosec // the test's own file
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}
