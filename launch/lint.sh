#!/usr/bin/env bash
# Checks format and lint of all Python files: bash launch/lint.sh. Settings are in pyproject.toml.
export EXTRAS=dev,convert,plan,serve # Those of launch/test.sh, so that one installation serves both.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff format --check --quiet . || { echo 'run: ruff format .' >&2; exit 1; }
ruff check --quiet .
