#!/bin/sh
# npm and npx as they come next on PATH, with a hook that keeps npm from taking / for a project: its first lines say why.
name=${0##*/}
set -f
IFS=:
for dir in $PATH; do
	program=${dir:-.}/$name
	if [ ! -x "$program" ] || [ -d "$program" ] || [ "$program" -ef "$0" ]; then continue; fi
	read -r first < "$program" 2> /dev/null
	case $first in
	'#!'*node*) exec node --require /usr/local/lib/atoll/npm-project.js "$program" "$@" ;;
	*) exec "$program" "$@" ;;
	esac
done
echo "$name: command not found" >&2
exit 127
