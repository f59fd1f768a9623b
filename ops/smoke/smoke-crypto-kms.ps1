#!/usr/bin/env pwsh
# The smoke test from a checkout, for PowerShell: ./ops/smoke/smoke-crypto-kms.ps1 --help
$python = if (Get-Command python3 -ErrorAction SilentlyContinue) { 'python3' } else { 'python' }
& $python (Join-Path $PSScriptRoot 'smoke-crypto-kms.py') @args
exit $LASTEXITCODE
