"""The page of tools/web_demo.py."""
