"""Workspaces: a mounted working tree for the time of one task, whose work cannot be lost.

>>> import artifactfs
>>> with artifactfs.workspace("https://host/org/hello.git", token=token) as ws:
...     ws.write("README.md", "# Hello\\n")
...     ws.run("make test", check=True)
...     ws.commit("Say hello")
...     ws.push("hello")

`opening` has the one call; `workspace` and `asynchronous` what can be done inside it; `fanout` many
of them at once.
"""
