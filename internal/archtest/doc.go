// Package archtest holds the machine-checked rules of the architecture. It has
// tests only and nothing imports it.
//
// The rules, each with its reason beside it, are tables: who may import whom
// (layers_test.go), which calls only named packages may make (calls_test.go),
// and the shape of packages and files (shape_test.go). All files of the tree
// are read, for every operating system at once; tests are free of the rules for
// imports and calls. A package that no table names is held to the strictest:
// a mechanism on its own. An exception is one line in a table, with its reason.
package archtest
