// Package spool is how the guard of a sandbox hands over what small files were
// before they changed, without waiting for an answer: it appends records to a
// file of the journal, and the journal takes them in later, also after a crash.
// A record counts if it is whole.
//
// The guard (pid 1 inside) writes, the controller and the workspace commands
// read. What they read is hostile.
package spool

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"sync"
)

// Record is a regular file before its change.
type Record struct {
	Path     string // relative to the folder
	Mode     uint32 // permission bits, with setuid, setgid and sticky
	UID, GID uint32
	Mtime    int64 // ns since 1970
	Inode    uint64
	Time     int64 // of the record, ns since 1970
	Content  []byte
}

// Bounds of a record. What is larger is not spooled.
const (
	MaxPath    = 4095
	MaxContent = 64 << 10
	MaxRecord  = header + MaxPath + MaxContent
)

// A record is a header, the path and the content. All numbers are little-endian.
const (
	magic  = 0x6c707362
	header = 60

	atSum     = 4 // CRC-32C of all behind it
	atPath    = 8 // its length
	atContent = 12
	atMode    = 16
	atUID     = 20
	atGID     = 24
	atMtime   = 28
	atInode   = 36
	atTime    = 44
	atReserve = 52 // 0
)

// castagnoli is made when it is needed: every process of Bulkhead has this package.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// ErrBad says that bytes are no record.
var ErrBad = errors.New("no record of a file")

// Begin returns a record in b's memory, with room for MaxContent bytes: the
// content is to be appended, see End.
func Begin(b []byte, r *Record) []byte {
	if cap(b) < MaxRecord {
		b = make([]byte, 0, MaxRecord)
	}
	b = b[:header]
	clear(b)
	le := binary.LittleEndian
	le.PutUint32(b, magic)
	le.PutUint32(b[atPath:], uint32(len(r.Path)))
	le.PutUint32(b[atMode:], r.Mode)
	le.PutUint32(b[atUID:], r.UID)
	le.PutUint32(b[atGID:], r.GID)
	le.PutUint64(b[atMtime:], uint64(r.Mtime))
	le.PutUint64(b[atInode:], r.Inode)
	le.PutUint64(b[atTime:], uint64(r.Time))
	return append(b, r.Path...)
}

// End makes a record whole to which a content of that many bytes was appended.
func End(b []byte, content int) {
	binary.LittleEndian.PutUint32(b[atContent:], uint32(content))
	binary.LittleEndian.PutUint32(b[atSum:], crc32.Checksum(b[atPath:], castagnoli()))
}

// Parse reads the record at the beginning of b and says how long it is. The
// error is io.ErrUnexpectedEOF if there may be more to come, or ErrBad. The
// content lies in b.
func Parse(b []byte) (r Record, n int, err error) {
	if len(b) < header {
		return r, 0, io.ErrUnexpectedEOF
	}
	le := binary.LittleEndian
	path, content := le.Uint32(b[atPath:]), le.Uint32(b[atContent:])
	if le.Uint32(b) != magic || path == 0 || path > MaxPath || content > MaxContent || le.Uint64(b[atReserve:]) != 0 {
		return r, 0, ErrBad
	}
	n = header + int(path) + int(content)
	if len(b) < n {
		return r, 0, io.ErrUnexpectedEOF
	}
	if crc32.Checksum(b[atPath:n], castagnoli()) != le.Uint32(b[atSum:]) {
		return r, 0, ErrBad
	}
	r = Record{
		Path: string(b[header : header+path]), Mode: le.Uint32(b[atMode:]), UID: le.Uint32(b[atUID:]), GID: le.Uint32(b[atGID:]),
		Mtime: int64(le.Uint64(b[atMtime:])), Inode: le.Uint64(b[atInode:]), Time: int64(le.Uint64(b[atTime:])), Content: b[header+path : n],
	}
	if r.Mode&^0o7777 != 0 {
		return Record{}, 0, ErrBad
	}
	return r, n, nil
}
