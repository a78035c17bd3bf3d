"""Reading from object stores: ranges of objects, many at once, and what is kept of them on a local disk.

::

    vfs      objects as libtiledb reaches them: its schemes, endpoints and credentials, without the GIL
    depth    how many requests are under way
    fetch    ranges fetched by threads: deadline, retries, a second try for what is slow
    held     bytes at hand as a file that the direct reader decodes
    cache    the same on a local disk, shared by processes
    client   what one process keeps of all that
"""
