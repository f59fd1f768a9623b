#!/usr/bin/env pwsh
# Audit logging of Cloud KMS from a checkout: finds Python, installs what `keypulse-audit` needs into .venv-audit, once,
# and passes everything on: ./ops/audit/setup-kms-audit-logging.ps1 plan --project acme-prod
$root = (Resolve-Path (Join-Path $PSScriptRoot '../..')).Path
$venv = Join-Path $root '.venv-audit'
$bin = Join-Path $venv $(if ($env:OS -eq 'Windows_NT') { 'Scripts/python' } else { 'bin/python' })
$installed = Join-Path $venv (Get-FileHash "$root/requirements/audit.lock").Hash

if (-not (Test-Path $installed)) {
    . (Join-Path $root 'ops/tools/find-python.ps1')
    & $python @options -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))'
    if (-not $?) { Write-Error "keypulse needs Python 3.11 or newer with venv, and '$python' is none; install it, or name another in PYTHON"; exit 2 }
    & $python @options -m venv --clear $venv
    if ($LASTEXITCODE -ne 0) { Write-Error "the virtual environment $venv could not be made; look at what Python says above"; exit 1 }
    & $bin -m pip install --quiet --require-hashes --only-binary :all: -r "$root/requirements/build.lock" -r "$root/requirements/audit.lock"
    if ($LASTEXITCODE -ne 0) { Write-Error 'pip needs to reach a package index this once; look at what it says above'; exit 1 }
    & $bin -m pip install --quiet --no-deps --no-build-isolation --no-index $root
    if ($LASTEXITCODE -ne 0) { Write-Error 'keypulse could not be installed; look at what pip says above'; exit 1 }
    New-Item -ItemType File -Path $installed | Out-Null
}
$before = $env:PYTHONPATH
$env:PYTHONPATH = $root
try { & $bin -m ops.audit @args } finally { $env:PYTHONPATH = $before }
exit $LASTEXITCODE
