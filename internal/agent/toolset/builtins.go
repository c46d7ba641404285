package toolset

import (
	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// sandboxTools are the built-in tools that run inside the sandbox.
var sandboxTools = []string{sandbox.ToolBash, sandbox.ToolRead, sandbox.ToolWrite, sandbox.ToolEdit, sandbox.ToolGlob, sandbox.ToolGrep}

// Where the file tools work besides the session's working directory, and where
// output goes that is too long for a result.
const spillDir = "/mnt/session/tool_outputs"

var fileRoots = []string{"/mnt/session", "/mnt/memory", "/tmp"}

// builtin is what the model is told of a built-in tool.
type builtin struct{ name, description, schema string }

// builtins are in the order in which they are offered, which never changes: the
// model's side caches what it has seen.
var builtins = []builtin{
	{sandbox.ToolBash, "Run a command in a persistent bash shell. The working directory, variables and background jobs survive between calls. " +
		"A command may take two minutes unless timeout_ms says otherwise; after a time-out the shell is started anew. Standard input is empty.",
		`{"type":"object","properties":{"command":{"type":"string","description":"The command to run"},` +
			`"restart":{"type":"boolean","description":"Start the shell anew before the command, or alone"},` +
			`"timeout_ms":{"type":"integer","description":"How long the command may take, in milliseconds"}}}`},
	{sandbox.ToolRead, "Read a text file, whole up to 256 KiB or the lines of view_range.",
		`{"type":"object","properties":{"file_path":{"type":"string","description":"Path of the file, absolute or relative to the working directory"},` +
			`"view_range":{"type":"array","items":{"type":"integer"},"description":"[start_line, end_line], counted from 1, both included; an end of 0 or less means the end of the file"}},` +
			`"required":["file_path"]}`},
	{sandbox.ToolWrite, "Write a text file, replacing what is there. Missing directories are made.",
		`{"type":"object","properties":{"file_path":{"type":"string","description":"Path of the file, absolute or relative to the working directory"},` +
			`"content":{"type":"string","description":"The whole content of the file"}},"required":["file_path","content"]}`},
	{sandbox.ToolEdit, "Replace old_string, which must occur exactly once in the file, with new_string; with replace_all every occurrence.",
		`{"type":"object","properties":{"file_path":{"type":"string","description":"Path of the file, absolute or relative to the working directory"},` +
			`"old_string":{"type":"string","description":"The text to replace"},"new_string":{"type":"string","description":"The text to put there"},` +
			`"replace_all":{"type":"boolean","description":"Replace every occurrence"}},"required":["file_path","old_string","new_string"]}`},
	{sandbox.ToolGlob, "List the paths that match a glob pattern, newest first, at most 200.",
		`{"type":"object","properties":{"pattern":{"type":"string","description":"A relative pattern like **/*.go; ** matches any number of directories"},` +
			`"path":{"type":"string","description":"The directory to search; the working directory if absent"}},"required":["pattern"]}`},
	{sandbox.ToolGrep, "Search the content of files for a regular expression. Lines come as path:line:text.",
		`{"type":"object","properties":{"pattern":{"type":"string","description":"The regular expression"},` +
			`"path":{"type":"string","description":"The file or directory to search; the working directory if absent"}},"required":["pattern"]}`},
	{api.ToolWebFetch, "Fetch a web page and give it as text; PDFs and images are given as they are.",
		`{"type":"object","properties":{"url":{"type":"string","description":"The http or https address"}},"required":["url"]}`},
	{api.ToolWebSearch, "Search the web. Gives titles, addresses and excerpts of the results.",
		`{"type":"object","properties":{"query":{"type":"string","description":"What to look for"}},"required":["query"]}`},
}
