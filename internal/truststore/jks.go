package truststore

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"strconv"
	"time"
	"unicode/utf16"

	"software.sslmate.com/src/go-pkcs12"
)

// A Java key store of the "JKS" kind: every JDK reads it, whatever the file's
// name and the default kind (keystore.type.compat in java.security), and it
// costs one SHA-1. Layout, big-endian: magic, version 2, count; for a trusted
// certificate: tag 2, alias, milliseconds since 1970, "X.509", length,
// certificate; at the end the SHA-1 of the password in UTF-16, the words
// "Mighty Aphrodite" and all that stands before.
const (
	jksMagic    = 0xFEEDFEED
	jksTrusted  = 2
	jksPassword = "changeit" // Java's default, known to everyone
	jksMax      = 16 << 20
)

var errStore = errors.New("not a store of trusted certificates")

func jksDigest(body []byte) []byte {
	h := sha1.New()
	for _, u := range utf16.Encode([]rune(jksPassword)) {
		h.Write([]byte{byte(u >> 8), byte(u)})
	}
	h.Write([]byte("Mighty Aphrodite"))
	h.Write(body)
	return h.Sum(nil)
}

func jksEntry(b []byte, alias string, der []byte, now time.Time) []byte {
	b = binary.BigEndian.AppendUint32(b, jksTrusted)
	b = binary.BigEndian.AppendUint16(b, uint16(len(alias)))
	b = append(b, alias...)
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixMilli()))
	b = append(b, "\x00\x05X.509"...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(der)))
	return append(b, der...)
}

// jksMake writes a store of the given certificates.
func jksMake(certs [][]byte, now time.Time) []byte {
	size := 32
	for _, c := range certs {
		size += len(c) + 64
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, size), jksMagic)
	b = binary.BigEndian.AppendUint32(b, 2)
	b = binary.BigEndian.AppendUint32(b, uint32(len(certs)))
	for i, c := range certs {
		alias := "host-" + strconv.Itoa(i)
		if i == 0 {
			alias = "bulkhead-session-ca"
		}
		b = jksEntry(b, alias, c, now)
	}
	return append(b, jksDigest(b)...)
}

// jksCerts reads the trusted certificates of a store. Entries with keys are
// refused: they are no business of a trust store.
func jksCerts(data []byte) ([][]byte, error) {
	if len(data) < 12+sha1.Size || len(data) > jksMax || binary.BigEndian.Uint32(data) != jksMagic {
		return nil, errStore
	}
	version := binary.BigEndian.Uint32(data[4:])
	count := binary.BigEndian.Uint32(data[8:])
	b := data[12 : len(data)-sha1.Size]
	if version != 1 && version != 2 {
		return nil, errStore
	}
	ok := true
	take := func(n uint64) []byte {
		if n > uint64(len(b)) {
			ok, b = false, nil
			return make([]byte, 8)
		}
		part := b[:n]
		b = b[n:]
		return part
	}
	var out [][]byte
	for range count {
		if tag := binary.BigEndian.Uint32(take(4)); tag != jksTrusted {
			return nil, errStore
		}
		take(uint64(binary.BigEndian.Uint16(take(2))))
		take(8)
		if version == 2 {
			take(uint64(binary.BigEndian.Uint16(take(2))))
		}
		der := take(uint64(binary.BigEndian.Uint32(take(4))))
		if !ok {
			return nil, errStore
		}
		out = append(out, der)
	}
	if len(b) != 0 {
		return nil, errStore
	}
	return out, nil
}

// javaCerts reads a cacerts file of either kind.
func javaCerts(data []byte) ([][]byte, error) {
	if len(data) >= 4 && binary.BigEndian.Uint32(data) == jksMagic {
		return jksCerts(data)
	}
	if len(data) > jksMax || len(data) < 2 || data[0] != 0x30 {
		return nil, errStore
	}
	for _, password := range []string{"", jksPassword} {
		if certs, err := pkcs12.DecodeTrustStore(data, password); err == nil {
			out := make([][]byte, len(certs))
			for i, c := range certs {
				out[i] = c.Raw
			}
			return out, nil
		}
	}
	return nil, errStore
}

// pemCerts returns the certificates of a bundle.
func pemCerts(bundle []byte) [][]byte {
	var out [][]byte
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			return out
		}
		if block.Type == "CERTIFICATE" && !bytes.Equal(block.Bytes, nil) {
			out = append(out, block.Bytes)
		}
	}
}
