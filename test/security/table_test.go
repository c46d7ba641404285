package security

import "errors"

func conclude(ok bool) error { return errors.Join(closeEngine()) }
