package tools

const sysMemfdCreate = 279
