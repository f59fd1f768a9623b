#!/usr/bin/env pwsh
# The smoke test from a checkout, for PowerShell: ./ops/smoke/smoke-crypto-kms.ps1 --help
. (Join-Path $PSScriptRoot '../tools/find-python.ps1')
& $python @options -c 'import sys; sys.exit(sys.version_info < (3, 11))'
if (-not $?) { Write-Error "keypulse needs Python 3.11 or newer, and '$python' is none; install it, or name another in PYTHON"; exit 2 }
& $python @options (Join-Path $PSScriptRoot 'smoke-crypto-kms.py') @args
exit $LASTEXITCODE
