// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template/parse"
)

// usage is what the templates of a chart read of .Values, found without rendering: by
// following "." and variables through with, range, include and dict.
type usage struct {
	trees map[string]*parse.Tree
	reads map[string]string // path -> a template that reads it
	whole map[string]bool   // paths that are read with all that is below them
	done  map[string]bool   // templates by name and argument
}

// thing is what an expression may be: a path below .Values, the root, a dict, or
// something else, of which nothing is known.
type thing struct {
	path   string // with a leading "."; "." is .Values itself
	isRoot bool
	fields map[string]thing
}

func (x thing) key() string { return fmt.Sprint(x.path, x.isRoot, x.fields) }

// analyze reads all templates of a folder.
func analyze(dir string) (*usage, error) {
	u := &usage{trees: map[string]*parse.Tree{}, reads: map[string]string{}, whole: map[string]bool{}, done: map[string]bool{}}
	paths, err := filepath.Glob(dir + "/*")
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		tree := parse.New(path)
		tree.Mode = parse.SkipFuncCheck
		if _, err := tree.Parse(string(text), "", "", u.trees); err != nil {
			return nil, err
		}
	}
	for _, path := range paths {
		if tree := u.trees[path]; tree != nil && !strings.HasSuffix(path, ".tpl") {
			u.execute(path, thing{isRoot: true})
		}
	}
	return u, nil
}

// uses reports whether a path, or one above it as a whole, is read.
func (u *usage) uses(path string) bool {
	if u.reads[path] != "" {
		return true
	}
	for ; path != ""; path = path[:max(0, strings.LastIndex(path, "."))] {
		if u.whole[path] {
			return true
		}
	}
	return false
}

// execute follows a template that is given dot.
func (u *usage) execute(name string, dot thing) {
	id := name + " " + dot.key()
	tree := u.trees[name]
	if tree == nil || u.done[id] {
		return
	}
	u.done[id] = true
	w := &walk{usage: u, where: filepath.Base(name), vars: map[string]thing{"$": dot}}
	w.list(tree.Root, dot)
}

// walk is one execution. Variables are not scoped: no template here reuses a name for
// something else.
type walk struct {
	*usage
	where string
	vars  map[string]thing
}

func (w *walk) list(l *parse.ListNode, dot thing) {
	if l == nil {
		return
	}
	for _, n := range l.Nodes {
		switch n := n.(type) {
		case *parse.ActionNode:
			w.pipe(n.Pipe, dot)
		case *parse.IfNode:
			w.branch(&n.BranchNode, dot, dot)
		case *parse.WithNode:
			w.branch(&n.BranchNode, dot, w.pipe(n.Pipe, dot))
		case *parse.RangeNode:
			x := w.pipe(n.Pipe, dot)
			w.useWhole(x)
			for _, v := range n.Pipe.Decl {
				w.vars[v.Ident[0]] = thing{}
			}
			w.list(n.List, thing{})
			w.list(n.ElseList, dot)
		case *parse.TemplateNode:
			w.execute(n.Name, w.pipe(n.Pipe, dot))
		}
	}
}

func (w *walk) branch(n *parse.BranchNode, dot, inside thing) {
	w.pipe(n.Pipe, dot)
	w.list(n.List, inside)
	w.list(n.ElseList, dot)
}

func (w *walk) pipe(p *parse.PipeNode, dot thing) thing {
	if p == nil {
		return thing{}
	}
	var x thing
	for i, c := range p.Cmds {
		if i == 0 {
			x = w.command(c, dot)
			continue
		}
		w.useWhole(x) // an argument of the next function
		x = w.command(c, dot)
	}
	for _, v := range p.Decl {
		w.vars[v.Ident[0]] = x
	}
	return x
}

func (w *walk) command(c *parse.CommandNode, dot thing) thing {
	function, ok := c.Args[0].(*parse.IdentifierNode)
	if !ok {
		return w.value(c.Args[0], dot)
	}
	args := make([]thing, len(c.Args)-1)
	for i, a := range c.Args[1:] {
		args[i] = w.value(a, dot)
	}
	switch function.Ident {
	case "include":
		if name, ok := c.Args[1].(*parse.StringNode); ok && len(args) == 2 {
			w.execute(name.Text, args[1])
		}
		return thing{}
	case "dict":
		fields := map[string]thing{}
		for i := 1; i < len(args); i += 2 {
			if name, ok := c.Args[i].(*parse.StringNode); ok {
				fields[name.Text] = args[i]
			}
		}
		return thing{fields: fields}
	case "and", "or", "not", "empty":
		return thing{} // says whether there is something, and no more
	}
	for _, a := range args {
		w.useWhole(a)
	}
	return thing{}
}

func (w *walk) value(n parse.Node, dot thing) thing {
	switch n := n.(type) {
	case *parse.DotNode:
		return dot
	case *parse.FieldNode:
		return w.fields(dot, n.Ident)
	case *parse.VariableNode:
		return w.fields(w.vars[n.Ident[0]], n.Ident[1:])
	case *parse.ChainNode:
		return w.fields(w.value(n.Node, dot), n.Field)
	case *parse.PipeNode:
		return w.pipe(n, dot)
	}
	return thing{}
}

// fields goes down from x.
func (w *walk) fields(x thing, names []string) thing {
	for _, name := range names {
		switch {
		case x.isRoot && name == "Values":
			x = thing{path: "."}
		case x.path != "":
			x = thing{path: strings.TrimSuffix(x.path, ".") + "." + name}
		default:
			x = x.fields[name]
		}
	}
	if path := strings.TrimPrefix(x.path, "."); path != "" {
		w.reads[path] = w.where
	}
	return x
}

func (w *walk) useWhole(x thing) {
	if path := strings.TrimPrefix(x.path, "."); path != "" {
		w.whole[path] = true
	}
	for _, field := range x.fields {
		w.useWhole(field)
	}
}
