"""The kinds of file that contain a virtualenv's path, one module each; `kinds` lists them.

A kind is a module with three things: `KIND`, its name in reports; `claims(path, data)`, whether a
file is of it; `rewrite(path, data, prefixes)`, the file relocated, as a pure function.
"""
