package image

// Progress receives the progress of a template build. Implementations are safe for concurrent use and return
// quickly. A nil Progress is allowed wherever one is taken.
type Progress interface {
	// Stage begins a named step: "downloading packages".
	Stage(name string)
	// Percent tells how much of the current step is done, 0 to 100.
	Percent(p float64)
	// Log is one line of a tool's output, without its newline.
	Log(line string)
}
