"""What the documentation is made of beside docs/: pages written from the code, and the files that mkdocs would not find.

`python -m docs_build` writes the pages; hooks.py is loaded by mkdocs.yml.
"""
