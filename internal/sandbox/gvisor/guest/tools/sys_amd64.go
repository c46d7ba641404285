package tools

const sysMemfdCreate = 319
