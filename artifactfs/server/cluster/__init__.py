"""Several servers on the same data: who is there, what only one of them does, and who takes over.

Each server has a row of ``servers`` and an advisory lock of PostgreSQL on a connection that it uses
for nothing else. The lock ends with the connection, so with the process, its machine or the network
between; ten seconds later another server removes the row and takes over. Whoever lost its
connection ends what it was doing, at once; and nothing is published (a ref moved, a repository made
ready) without the row: that is asked in the same transaction, or by git just before it moves a ref.
"""
