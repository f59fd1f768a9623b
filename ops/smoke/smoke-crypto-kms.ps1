#!/usr/bin/env pwsh
# The smoke test from a checkout, for PowerShell: ./ops/smoke/smoke-crypto-kms.ps1 --help
. (Join-Path $PSScriptRoot '../tools/find-python.ps1')
& $python @options (Join-Path $PSScriptRoot 'smoke-crypto-kms.py') @args
exit $LASTEXITCODE
