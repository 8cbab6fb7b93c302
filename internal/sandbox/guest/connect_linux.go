package guest

// The commands inside have it at hand: it is a child of the same binary.
import _ "github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/connect"
