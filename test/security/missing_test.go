package security

// withoutCase says, for numbers that have no case here, why.
func withoutCase() map[string]string {
	return map[string]string{}
}

// onePlace says, for cases that run in one place, why.
func onePlace() map[string]string {
	return map[string]string{}
}
