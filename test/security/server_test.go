package security

func beServer(dir string) {}
