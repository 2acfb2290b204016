"""What other people use, as recipes beside ours: for benchmarks only, never needed by the package."""
