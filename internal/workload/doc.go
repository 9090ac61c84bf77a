// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package workload makes the objects of a custom resource from Helm templates.
//
// The shape of pods stays in the chart, where platform teams review, test and vendor
// it: the chart ships a folder of templates to the operator in a ConfigMap. This
// package renders that folder with Helm's engine ([Render]), and keeps the objects in
// the cluster like it ([Set.Apply], [Set.Prune]).
//
//   - Objects are applied on the server's side, so that fields that others set stay.
//   - What exists and belongs to somebody else is never taken over: see [NotOursError].
//   - All objects carry the labels of their set and a reference to their owner. What
//     carries them and is not rendered any more is deleted.
//   - Templates make objects of one namespace and of known kinds only. What a template
//     could do beyond that is not the operator's to give.
package workload
