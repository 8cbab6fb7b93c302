package gitwire

import (
	"errors"
	"strings"
)

// Command is what git asks an SSH server to run.
type Command struct {
	// Name is "git-upload-pack", "git-receive-pack", "git-upload-archive" or
	// "git-lfs-authenticate".
	Name string
	// Path is the repository without a slash in front and without ".git".
	Path string
	// Argument is the last word of git-lfs-authenticate: download or upload.
	Argument string
}

const maxCommand = 1024

// ReadCommand reads the command line of an SSH session, as git and git-lfs write
// it: the name (git-upload-pack, or git upload-pack), one repository, quoted as
// git quotes or plain, and nothing else. Homes (~user), options, other quoting
// and everything that a shell would act on are errors.
func ReadCommand(line string) (Command, error) {
	if len(line) > maxCommand {
		return Command{}, errors.New("the command is too long")
	}
	words, err := split(line)
	if err != nil {
		return Command{}, err
	}
	if len(words) > 2 && words[0] == "git" {
		words = append([]string{"git-" + words[1]}, words[2:]...)
	}
	if len(words) == 0 {
		return Command{}, errors.New("a shell is not offered, only git's commands")
	}
	c := Command{Name: words[0]}
	switch c.Name {
	case "git-upload-pack", "git-receive-pack", "git-upload-archive":
		if len(words) != 2 {
			return Command{}, errors.New(c.Name + " takes one repository and nothing else")
		}
	case "git-lfs-authenticate":
		if len(words) != 3 || words[2] != "download" && words[2] != "upload" {
			return Command{}, errors.New("git-lfs-authenticate takes a repository and download or upload")
		}
		c.Argument = words[2]
	default:
		return Command{}, errors.New("only git's commands are mediated: git-upload-pack and git-receive-pack")
	}
	path := strings.TrimPrefix(words[1], "/")
	path = strings.TrimSuffix(path, "/")
	path = strings.TrimSuffix(path, ".git")
	if path == "" || strings.HasPrefix(path, "-") || strings.HasPrefix(path, "~") {
		return Command{}, errors.New("the repository is not named by a path from the root")
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-") != "" {
			return Command{}, errors.New("the repository's path has parts or letters that hosts do not use")
		}
	}
	c.Path = path
	return c, nil
}

// split knows single words without any quoting, and words in single quotes
// without a quote in them: what git writes for all names that hosts allow.
func split(line string) ([]string, error) {
	var words []string
	for i := 0; i < len(line); {
		if line[i] == ' ' {
			return nil, errors.New("the command has spaces that git does not write")
		}
		var word string
		if line[i] == '\'' {
			end := strings.IndexByte(line[i+1:], '\'')
			if end < 0 {
				return nil, errors.New("the command has a quote without an end")
			}
			word = line[i+1 : i+1+end]
			i += end + 2
		} else {
			end := strings.IndexByte(line[i:], ' ')
			if end < 0 {
				end = len(line) - i
			}
			word = line[i : i+end]
			i += end
		}
		if word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-/~") != "" {
			return nil, errors.New("the command has letters that are refused: quotes, escapes, or what a shell would act on")
		}
		words = append(words, word)
		if i == len(line) {
			break
		}
		if line[i] != ' ' || i+1 == len(line) {
			return nil, errors.New("the command's words are not separated by one space each")
		}
		i++
	}
	return words, nil
}
