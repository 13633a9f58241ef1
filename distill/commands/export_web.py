"""``distill export --format web``: the checked ONNX file, and a page around it."""

from __future__ import annotations

import argparse
from pathlib import Path


def register_web(parser: argparse.ArgumentParser) -> None:
    """Add the options that concern the page alone."""
    parser.add_argument(
        "--ort-web", type=Path, metavar="PATH",
        help="for --format web: the npm package onnxruntime-web, as .tgz or unpacked (default: fetched once by npm and kept)",
    )


def export_web(options: argparse.Namespace) -> int:
    """Export the run's student to ONNX, gate included, then write the page; ``--out`` is the page's folder."""
    from distill.commands import export
    from distill.console import print_json, print_result, say
    from distill.exporting import student_directory
    from distill.web_export import refuse_strangers, write_web_folder
    from distill.web_runtime import open_runtime
    from distill.workshop import refuse_unwritable

    # What can be wrong is looked at before the minutes of the export.
    student_directory(options.run_dir)
    out: Path = options.out or options.run_dir / "exports" / "web"
    refuse_strangers(out)
    refuse_unwritable(out.parent)
    runtime = open_runtime(options.ort_web, say=say)
    if not runtime.checked:
        say(f"onnxruntime-web {runtime.version} is taken as given: its digest is not one that this version of distill knows")
    # Beside the files that take raw pictures, and under a name of its own.
    exported = export.checked_file(options, options.run_dir / "exports" / "student_web.onnx")
    folder = write_web_folder(exported.path, out, runtime)
    if options.json:
        print_json({"path": str(folder.path), "page": str(folder.page), "bytes": folder.bytes, **folder.record})
        return 0
    export.show(exported)
    print_result(f"{folder.page}  {folder.bytes / 1e6:.1f} MB, works offline: open it in a browser, or")
    print_result(f"python -m http.server --directory {folder.path}")
    return 0
