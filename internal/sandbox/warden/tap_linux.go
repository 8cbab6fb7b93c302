package warden

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const tunDevice = "/dev/net/tun"

// openTAP makes the sandbox's only link, in this process's network namespace,
// with its addresses and default routes.
func openTAP() (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tunDevice, err)
	}
	tap := os.NewFile(uintptr(fd), "tap")
	if err := configure(fd); err != nil {
		tap.Close()
		return nil, fmt.Errorf("setting up the sandbox's link: %w", err)
	}
	return tap, nil
}

func configure(fd int) error {
	ifr, err := unix.NewIfreq(Interface)
	if err != nil {
		return err
	}
	ifr.SetUint16(sandbox.LinkFlags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, sandbox.LinkOffload); err != nil {
		return fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	// The device goes with its network namespace, in the background. Without
	// this, whoever closes it last waits some 15 ms for the kernel's RCU.
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("TUNSETPERSIST: %w", err)
	}
	v6 := quietIPv6()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	link, err := h.LinkByName(Interface)
	if err != nil {
		return err
	}
	if err := h.LinkSetMTU(link, sandbox.LinkMTU); err != nil {
		return fmt.Errorf("MTU: %w", err)
	}
	addresses := []string{sandbox.LinkGuest4}
	gateways := []string{sandbox.LinkGateway4}
	if v6 {
		addresses = append(addresses, sandbox.LinkGuest6)
		gateways = append(gateways, sandbox.LinkGateway6)
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	for _, g := range gateways {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(g)}); err != nil {
			return fmt.Errorf("default route by %s: %w", g, err)
		}
	}
	return nil
}

// quietIPv6 switches off what the kernel would send by itself (router
// solicitations, generated addresses). False: this kernel has no IPv6, so
// there is nothing to set up.
func quietIPv6() bool {
	dir := "/proc/sys/net/ipv6/conf/" + Interface
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return false
	}
	for _, kv := range [][2]string{{"accept_ra", "0"}, {"autoconf", "0"}, {"addr_gen_mode", "1"}} {
		// Only noise on the link is at stake.
		_ = os.WriteFile(dir+"/"+kv[0], []byte(kv[1]), 0)
	}
	return true
}
