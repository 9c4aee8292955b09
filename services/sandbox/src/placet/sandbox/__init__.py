"""The two sandboxes of Placet: `rego` evaluates policies, `policydata` runs WebAssembly components that fetch data.

This package knows neither tasks nor chains nor the bus, and imports nothing but wasmtime: what an operator signs with its
help must be reproducible by anyone who installs these two things.
"""
