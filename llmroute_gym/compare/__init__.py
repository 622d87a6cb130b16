"""Routers compared on common requests: who, on what, with which numbers, as text and pictures."""
