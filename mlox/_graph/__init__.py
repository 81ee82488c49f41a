"""Who reads whom: the graph, its schedule, and which answers respond to whom."""
