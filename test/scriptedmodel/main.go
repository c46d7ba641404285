// Command scriptedmodel serves a scripted Messages API on a free port of
// loopback and prints its address: for the demo, and for trying agents where
// there is no model. A message that carries a script is played; one about
// Fibonacci numbers is answered with a program that prints them; to any other
// it says that it is done.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"

	"github.com/atoll-run/atoll/internal/agent/modeltest"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("http://%s\n", listener.Addr())
	server := &modeltest.Server{Key: os.Getenv("ATOLL_MODEL_KEY"), Rules: []modeltest.Rule{fibonacci()}}
	log.Fatal(http.Serve(listener, server))
}

// fibonacci is how the model answers the quickstart's question.
func fibonacci() modeltest.Rule {
	program := "a, b = 0, 1\nfor _ in range(10):\n    print(a, end=' ')\n    a, b = b, a + b\n"
	write, err := json.Marshal(map[string]string{"file_path": "fib.py", "content": program})
	if err != nil {
		log.Fatal(err)
	}
	return modeltest.Rule{Match: regexp.MustCompile(`(?i)fibonacci`), Play: modeltest.Script{
		{Text: "I write a program and run it.", Tools: []modeltest.ToolUse{
			{Name: "write", Input: write}, {Name: "bash", Input: json.RawMessage(`{"command":"python3 fib.py"}`)},
		}},
		{Text: "The first ten are: {{result}}"},
	}}
}
