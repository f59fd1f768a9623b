# For a launcher: sets $python and $options to the Python that it runs. The first of: PYTHON, the active virtual
# environment, .venv of this checkout, `py -3` of Windows, python3, python. On Windows `python3` may only open the Store.
$checkout = (Resolve-Path (Join-Path $PSScriptRoot '../..')).Path
$python = $env:PYTHON
$options = @()
foreach ($folder in $env:VIRTUAL_ENV, (Join-Path $checkout '.venv')) {
    foreach ($name in 'Scripts/python.exe', 'bin/python') {
        if (-not $python -and $folder -and (Test-Path (Join-Path $folder $name))) { $python = Join-Path $folder $name }
    }
}
if (-not $python -and $env:OS -eq 'Windows_NT' -and (Get-Command py -ErrorAction SilentlyContinue)) {
    $python = 'py'
    $options = @('-3')
}
if (-not $python) { $python = if (Get-Command python3 -ErrorAction SilentlyContinue) { 'python3' } else { 'python' } }
