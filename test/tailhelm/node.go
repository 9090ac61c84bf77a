// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailhelm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilwait "k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	nodeInterval      = 100 * time.Millisecond // between looks at the Pods
	nodeLeaseInterval = 10 * time.Second
	nodeLeaseSeconds  = 40
)

// NodeOptions say what a [Node] runs.
type NodeOptions struct {
	// Name is that of the Node.
	Name string
	// Config is access to the API server, with all rights.
	Config *rest.Config
	// Namespace holds the Pods.
	Namespace string
	// Program is in the place of their image.
	Program string
	// Dir gets a folder for each Pod.
	Dir string
	// Env comes after that of each Pod.
	Env []string
}

// metricsFlag is where a process serves health and metrics.
const metricsFlag = "--metrics-address="

// Node is a scheduler and a node for the Pods of one namespace. It runs their first
// containers as processes of this machine, asks them whether they are ready, ends them
// with SIGTERM when their Pods are deleted, and starts them again when they end before.
// Nothing is isolated, and there are no probes but readiness.
type Node struct {
	options NodeOptions
	client  kubernetes.Interface
	cancel  context.CancelFunc
	group   sync.WaitGroup

	mu   sync.Mutex
	pods map[types.UID]*nodePod
	errs []error
}

// nodePod is a Pod that runs.
type nodePod struct {
	name    string
	command Command
	process *Process
	ending  context.CancelFunc // kills the process; nil until its Pod is deleted
	ready   bool
}

// StartNode registers a node and runs Pods on it until Close.
func StartNode(ctx context.Context, o NodeOptions) (*Node, error) {
	client, err := kubernetes.NewForConfig(o.Config)
	if err != nil {
		return nil, err
	}
	n := &Node{options: o, client: client, pods: map[types.UID]*nodePod{}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: o.Name}}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}
	if _, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("registering the node: %w", err)
	}
	ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	n.group.Go(func() { utilwait.UntilWithContext(ctx, n.look, nodeInterval) })
	n.group.Go(func() { utilwait.UntilWithContext(ctx, n.renew, nodeLeaseInterval) })
	return n, nil
}

// Close ends all processes. It returns what went wrong, which includes each process that
// ended with another status than 0.
func (n *Node) Close() error {
	n.cancel()
	n.group.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pods {
		_ = p.process.Signal(syscall.SIGTERM) // it may have ended
	}
	for _, p := range n.pods {
		n.ended(p, p.process.Stop(ctx))
	}
	return errors.Join(n.errs...)
}

// Process returns what runs for a Pod, or nil.
func (n *Node) Process(pod string) *Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pods {
		if p.name == pod && p.ending == nil {
			return p.process
		}
	}
	return nil
}

// Logs returns the ends of the logs of what runs, for a test that failed.
func (n *Node) Logs() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var b strings.Builder
	for _, p := range n.pods {
		fmt.Fprintf(&b, "%s:\n%s\n", p.name, p.process.tail())
	}
	return b.String()
}

// note keeps an error for Close, and n.mu is held.
func (n *Node) note(err error) {
	if err != nil && len(n.errs) < 10 {
		n.errs = append(n.errs, err)
	}
}

// ended notes how a process ended.
func (n *Node) ended(p *nodePod, err error) {
	if log := strings.Join(p.process.Log(), "\n"); strings.Contains(log, "DATA RACE") {
		err = errors.Join(err, fmt.Errorf("a data race:\n%s", log))
	}
	if err != nil {
		n.note(fmt.Errorf("pod %s: %w", p.name, err))
	}
}

// renew says that the node is alive, for its Pods not to be evicted.
func (n *Node) renew(ctx context.Context) {
	leases := n.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	seconds, now := int32(nodeLeaseSeconds), metav1.NowMicro()
	spec := coordinationv1.LeaseSpec{HolderIdentity: &n.options.Name, LeaseDurationSeconds: &seconds, RenewTime: &now}
	lease, err := leases.Get(ctx, n.options.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.options.Name}, Spec: spec}, metav1.CreateOptions{})
	} else if err == nil {
		lease.Spec = spec
		_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	}
	if err != nil && ctx.Err() == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.note(fmt.Errorf("renewing the node's lease: %w", err))
	}
}

// look does what the Pods ask for now.
func (n *Node) look(ctx context.Context) {
	list, err := n.client.CoreV1().Pods(n.options.Namespace).List(ctx, metav1.ListOptions{})
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			n.note(fmt.Errorf("listing Pods: %w", err))
		}
		return
	}
	for i := range list.Items {
		if err := n.sync(ctx, &list.Items[i]); err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			n.note(fmt.Errorf("pod %s: %w", list.Items[i].Name, err))
		}
	}
}

// sync does what one Pod asks for now.
func (n *Node) sync(ctx context.Context, object *corev1.Pod) error {
	p := n.pods[object.UID]
	switch {
	case object.DeletionTimestamp != nil:
		return n.end(ctx, object, p)
	case object.Spec.NodeName == "":
		return n.client.CoreV1().Pods(object.Namespace).Bind(ctx, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: object.Namespace, Name: object.Name, UID: object.UID},
			Target:     corev1.ObjectReference{Kind: "Node", Name: n.options.Name},
		}, metav1.CreateOptions{})
	case object.Status.Phase == corev1.PodSucceeded || object.Spec.NodeName != n.options.Name:
		return nil
	case p == nil:
		return n.start(ctx, object)
	}
	select {
	case <-p.process.Done():
		return n.restart(ctx, object, p)
	default:
	}
	code, _, err := p.process.Get(ctx, "/readyz")
	if ready := err == nil && code == http.StatusOK; ready != p.ready || object.Status.Phase != corev1.PodRunning {
		p.ready = ready
		return n.report(ctx, object, corev1.PodRunning, ready)
	}
	return nil
}

// start starts a Pod's process.
func (n *Node) start(ctx context.Context, object *corev1.Pod) error {
	local := &pod{
		client: n.client, namespace: object.Namespace, name: object.Name, uid: object.UID, labels: object.Labels,
		spec: object.Spec, dir: filepath.Join(n.options.Dir, string(object.UID)), mounts: map[string]string{},
	}
	command, err := local.command(ctx, n.options.Config, n.options.Program)
	if err != nil {
		return err
	}
	command.Env = append(command.Env, n.options.Env...)
	for i, arg := range command.Args {
		if strings.HasPrefix(arg, metricsFlag) {
			command.Args[i] = metricsFlag + "127.0.0.1:0" // Pods share the machine's ports
		}
	}
	process, err := Start(context.WithoutCancel(ctx), command)
	if err != nil {
		return err
	}
	n.pods[object.UID] = &nodePod{name: object.Name, command: command, process: process}
	return nil
}

// restart starts a process again that has ended, unless it was to end.
func (n *Node) restart(ctx context.Context, object *corev1.Pod, p *nodePod) error {
	err := p.process.Stop(ctx)
	if err == nil && object.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		delete(n.pods, object.UID)
		return n.report(ctx, object, corev1.PodSucceeded, false)
	}
	n.ended(p, err)
	p.process, err = Start(context.WithoutCancel(ctx), p.command)
	return err
}

// end ends the process of a Pod that is deleted, and then the Pod.
func (n *Node) end(ctx context.Context, object *corev1.Pod, p *nodePod) error {
	if p != nil && p.ending == nil {
		grace := time.Duration(*object.DeletionGracePeriodSeconds) * time.Second
		timer := time.AfterFunc(grace, func() { _ = p.process.Signal(syscall.SIGKILL) })
		p.ending = func() { timer.Stop() }
		_ = p.process.Signal(syscall.SIGTERM) // it may have ended
	}
	if p != nil {
		select {
		case <-p.process.Done():
			p.ending()
			n.ended(p, p.process.Stop(ctx))
			delete(n.pods, object.UID)
		default:
			return nil
		}
	}
	now := int64(0)
	return n.client.CoreV1().Pods(object.Namespace).Delete(ctx, object.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: metav1.NewUIDPreconditions(string(object.UID)),
	})
}

// report writes a Pod's status.
func (n *Node) report(ctx context.Context, object *corev1.Pod, phase corev1.PodPhase, ready bool) error {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	object = object.DeepCopy()
	object.Status.Phase = phase
	object.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.ContainersReady, Status: status, LastTransitionTime: metav1.Now()},
		{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()},
	}
	_, err := n.client.CoreV1().Pods(object.Namespace).UpdateStatus(ctx, object, metav1.UpdateOptions{})
	return err
}
