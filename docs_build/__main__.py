"""Write the pages of docs/reference that come from the code: `python -m docs_build`."""

from __future__ import annotations

from docs_build import pages


def main() -> None:
    """Write each page that differs from what the code says, and name it."""
    for path, text in pages.written_from_code().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(pages.ROOT)}")


if __name__ == "__main__":
    main()
