"""What is fetched before what: priorities, neighbours, readahead, the inventory of a tree."""
