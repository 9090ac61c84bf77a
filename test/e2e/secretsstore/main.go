// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command secretsstore is a CSI driver with one kind of volume: files that are there from
// the start, as drivers of secret stores make them. It serves pods' inline volumes, and
// registers itself with the kubelet of its node, whose folder it sees under the same path.
//
//	secretsstore DRIVER NODE FOLDER
//
// The attribute secretProviderClass of a volume is the name of a folder in FOLDER, whose
// files are copied into the volume.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const kubelet = "/var/lib/kubelet"

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: secretsstore DRIVER NODE FOLDER")
		os.Exit(2)
	}
	if err := run(&driver{name: os.Args[1], node: os.Args[2], folder: os.Args[3]}); err != nil {
		fmt.Fprintln(os.Stderr, "secretsstore:", err)
		os.Exit(1)
	}
}

type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer

	name, node, folder string
}

// socket is where the kubelet reaches the driver.
func (d *driver) socket() string { return filepath.Join(kubelet, "plugins", d.name, "csi.sock") }

func run(d *driver) error {
	failed := make(chan error)
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, d)
	csi.RegisterNodeServer(server, d)
	if err := serve(server, d.socket(), failed); err != nil {
		return err
	}
	// The kubelet watches this folder. It asks as soon as the socket is there.
	register := grpc.NewServer()
	registration.RegisterRegistrationServer(register, d)
	if err := serve(register, filepath.Join(kubelet, "plugins_registry", d.name+"-reg.sock"), failed); err != nil {
		return err
	}
	return <-failed
}

func serve(server *grpc.Server, socket string, failed chan<- error) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return err
	}
	// An earlier driver's.
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(context.Background(), "unix", socket)
	if err != nil {
		return err
	}
	go func() { failed <- server.Serve(listener) }()
	return nil
}

// GetInfo is the kubelet's question at registration.
func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: d.name, Endpoint: d.socket(), SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus is the kubelet's answer. The container's status shows an error.
func (d *driver) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !s.GetPluginRegistered() {
		fmt.Fprintln(os.Stderr, "secretsstore: the kubelet refuses the driver:", s.GetError())
		os.Exit(1)
	}
	fmt.Println("registered")
	return &registration.RegistrationStatusResponse{}, nil
}

// GetPluginInfo implements csi.IdentityServer.
func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "test"}, nil
}

// NodeGetInfo implements csi.NodeServer.
func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

// NodeGetCapabilities implements csi.NodeServer: there are none.
func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

// NodePublishVolume makes a volume: a folder in the kubelet's, where pods see it.
func (d *driver) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	class := r.GetVolumeContext()["secretProviderClass"]
	if class == "" || strings.Contains(class, "/") {
		return nil, status.Errorf(codes.InvalidArgument, "secretProviderClass %q: want the name of a folder", class)
	}
	// Without the kubelet's own, such as ..data.
	files, err := filepath.Glob(filepath.Join(d.folder, class, "[^.]*"))
	if err != nil || len(files) == 0 {
		return nil, status.Errorf(codes.NotFound, "secretProviderClass %q has no files: %v", class, err)
	}
	if err := os.MkdirAll(r.GetTargetPath(), 0o755); err != nil { //nolint:gosec // the pod runs as another user
		return nil, status.Error(codes.Internal, err.Error())
	}
	for _, file := range files {
		content, err := os.ReadFile(file) //nolint:gosec // in our folder
		if err == nil {
			err = os.WriteFile(filepath.Join(r.GetTargetPath(), filepath.Base(file)), content, 0o444) //nolint:gosec // as above
		}
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume takes a volume away.
func (d *driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := os.RemoveAll(r.GetTargetPath()); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
