"""What the metadata database holds: namespaces, repositories and tokens; and limits in memory.

`records` says what each token may do. It is checked in `base` of the API, in `git/http` and in
`web/sessions`.
"""
