// Loaded into npm's process before npm, in sessions and in builds. npm takes the nearest directory with a package.json
// or a node_modules for the project. / has a node_modules in every sandbox: the link by which programs find the
// environment's packages. npm must not see that, or the project of every directory without a package.json were /, and
// npm would put a directory in the link's place. A /node_modules that somebody made is shown.
'use strict'
const fs = require('fs')

function hidden (path) {
  try {
    return path === '/node_modules' && fs.readlinkSync(path) === '/usr/local/lib/node_modules'
  } catch {
    return false
  }
}

function absent (path) {
  return Object.assign(new Error(`ENOENT: no such file or directory, stat '${path}'`), { errno: -2, code: 'ENOENT', syscall: 'stat', path })
}

const stat = fs.stat
fs.stat = function (path, ...rest) {
  return hidden(path) ? process.nextTick(rest.pop(), absent(path)) : stat.call(this, path, ...rest)
}
const promised = fs.promises.stat
fs.promises.stat = async function (path, ...rest) {
  if (hidden(path)) throw absent(path)
  return promised.call(this, path, ...rest)
}
