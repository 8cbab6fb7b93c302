package instance

import (
	"fmt"
	"io"
	"os"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"golang.org/x/sys/unix"
)

// MemoryFile holds bytes for a runtime to read; it is gone with its last reader.
func MemoryFile(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("bulkhead", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memory file")
	if _, err = f.Write(content); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("memory file: %w", err)
	}
	return f, nil
}

// TmpfsSize is for memory file systems without a size of their own: a quarter
// of the machine's memory, and not more than
// the sandbox may use or keep at all.
func TmpfsSize(l sandbox.Limits) int64 {
	size := int64(1 << 30)
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		size = int64(uint64(si.Totalram) * uint64(si.Unit) / 4)
	}
	if l.Memory > 0 {
		size = min(size, l.Memory)
	}
	if l.Disk > 0 {
		size = min(size, l.Disk)
	}
	return max(size, 1<<20)
}
