package obedient

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	maxLine   = 1 << 20
	maxBlocks = 64
	maxAnswer = 8 << 20
)

// readAnswer reads one message as server-sent events, to message_stop. A
// stream that ends before that is an error: half a command must not run.
func readAnswer(r io.Reader) (blocks []block, stop string, err error) {
	sc := bufio.NewScanner(io.LimitReader(r, maxAnswer))
	sc.Buffer(make([]byte, 0, 64<<10), maxLine)
	var inputs []bytes.Buffer
	for sc.Scan() {
		data, ok := bytes.CutPrefix(sc.Bytes(), []byte("data:"))
		if !ok {
			continue // event names repeat what the data says; comments and blanks
		}
		var e struct {
			Type         string `json:"type"`
			Index        int    `json:"index"`
			ContentBlock block  `json:"content_block"`
			Delta        struct {
				Type        string `json:"type"`
				Text        string `json:"text"`
				PartialJSON string `json:"partial_json"`
				StopReason  string `json:"stop_reason"`
			} `json:"delta"`
			Error struct {
				Type    string `json:"type"`
				Message string `json:"message"`
			} `json:"error"`
		}
		if err := json.Unmarshal(data, &e); err != nil {
			return nil, "", fmt.Errorf("broken event from the model: %w", err)
		}
		switch e.Type {
		case "content_block_start":
			if e.Index != len(blocks) || len(blocks) == maxBlocks {
				return nil, "", fmt.Errorf("block %d from the model, expected %d", e.Index, len(blocks))
			}
			e.ContentBlock.Input = nil
			blocks, inputs = append(blocks, e.ContentBlock), append(inputs, bytes.Buffer{})
		case "content_block_delta":
			if e.Index < 0 || e.Index >= len(blocks) {
				return nil, "", fmt.Errorf("delta for block %d from the model, have %d", e.Index, len(blocks))
			}
			switch e.Delta.Type {
			case "text_delta":
				blocks[e.Index].Text += e.Delta.Text
			case "input_json_delta":
				inputs[e.Index].WriteString(e.Delta.PartialJSON)
			}
		case "message_delta":
			stop = e.Delta.StopReason
		case "message_stop":
			return finish(blocks, inputs, stop)
		case "error":
			return nil, "", fmt.Errorf("%s from the model: %s", e.Error.Type, e.Error.Message)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, "", fmt.Errorf("reading the model's answer: %w", err)
	}
	return nil, "", errors.New("the model's answer ended in the middle")
}

func finish(blocks []block, inputs []bytes.Buffer, stop string) ([]block, string, error) {
	kept := blocks[:0]
	for i, b := range blocks {
		switch b.Type {
		case "text":
			if b.Text == "" {
				continue // the API takes no empty text back
			}
		case "tool_use":
			b.Input = inputs[i].Bytes()
			if len(b.Input) == 0 {
				b.Input = json.RawMessage("{}")
			}
			if !json.Valid(b.Input) {
				return nil, "", fmt.Errorf("the input of %s is not JSON", b.Name)
			}
		default:
			continue
		}
		kept = append(kept, b)
	}
	if stop == "" {
		return nil, "", errors.New("the model's answer has no stop reason")
	}
	return kept, stop, nil
}
