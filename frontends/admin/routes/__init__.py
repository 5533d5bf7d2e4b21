"""The routes of the admin port: one module for each group.

`table` lists the groups, `route` defines what a route consists of.
"""
