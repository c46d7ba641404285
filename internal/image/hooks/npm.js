// Loaded into npm's process before npm. It tells the server on descriptor 3, as lines of JSON:
//   files      digests of what npm had in its cache before any package code ran
//   code       package code is about to run
//   installed  what is there afterwards
// Package code runs in processes of its own only, and every start is told before it happens.
'use strict'
const fs = require('fs')
const path = require('path')
const child = require('child_process')

if (process.env.ATOLL_NODE_OPTIONS) process.env.NODE_OPTIONS = process.env.ATOLL_NODE_OPTIONS
else delete process.env.NODE_OPTIONS
delete process.env.ATOLL_NODE_OPTIONS

const store = '@SCRATCH@/npm/_cacache/content-v2/sha512'
const modules = path.join(process.env.NPM_CONFIG_PREFIX || '/usr/local', 'lib/node_modules')

function tell (what) {
  let data = Buffer.from(JSON.stringify(what) + '\n')
  while (data.length > 0) {
    try {
      data = data.subarray(fs.writeSync(3, data))
    } catch (e) {
      if (e.code !== 'EAGAIN') return
    }
  }
}

function names (dir) {
  try { return fs.readdirSync(dir) } catch { return [] }
}

let told = false
function tellFiles () {
  if (told) return
  told = true
  const files = {}
  for (const a of names(store)) for (const b of names(path.join(store, a))) for (const c of names(path.join(store, a, b))) files[a + b + c] = []
  tell({ files })
}

for (const name of ['spawn', 'spawnSync', 'exec', 'execSync', 'execFile', 'execFileSync', 'fork']) {
  const start = child[name]
  child[name] = function (...args) {
    tellFiles()
    tell({ code: true })
    return start.apply(this, args)
  }
}

function list (dir, top, out) {
  for (const name of names(dir)) {
    const at = path.join(dir, name)
    try {
      if (name[0] === '.' || !fs.lstatSync(at).isDirectory()) continue
      if (name[0] === '@') {
        for (const inner of names(at)) describe(path.join(at, inner), name + '/' + inner, top, out)
      } else describe(at, name, top, out)
    } catch {}
  }
  return out
}

function describe (at, name, top, out) {
  const version = JSON.parse(fs.readFileSync(path.join(at, 'package.json'), 'utf8')).version
  if (typeof version === 'string') out.push({ name, version, top, at })
  list(path.join(at, 'node_modules'), false, out)
}

const before = new Set(list(modules, true, []).map(p => p.at + ' ' + p.version))
process.on('exit', code => {
  tellFiles()
  if (code === 0) {
    tell({ installed: list(modules, true, []).map(p => ({ name: p.name, version: p.version, top: p.top, new: !before.has(p.at + ' ' + p.version) })) })
  }
})
