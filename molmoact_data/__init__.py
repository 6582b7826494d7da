"""The base of molmoact: the record, pure label functions, teacher protocols and episode sources.

Imports with numpy and pyarrow alone; video, adapters and simulation bring their own
dependencies and are imported when chosen.
"""
