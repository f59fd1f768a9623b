{{/* Small objects that several parts have. All take (dict "root" $ "part" NAME). */}}

{{- define "keypulse.configMap" -}}
apiVersion: v1
kind: ConfigMap
metadata: {{- include "keypulse.metadata" . | nindent 2 }}
data:
  {{ .part }}.yml: |
    {{- include "keypulse.configuration" . | nindent 4 }}
{{- range $name, $text := (index .root.Values .part).templates }}
  {{ $name }}.j2: |
    {{- $text | nindent 4 }}
{{- end }}
{{- end }}

{{- define "keypulse.serviceAccount" -}}
{{- $account := (index .root.Values .part).serviceAccount -}}
{{- if not $account.name -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "keypulse.metadata" . | nindent 2 }}
  {{- with $account.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
{{- end }}

{{/* What is in it cannot be made again, so `helm uninstall` leaves it. */}}
{{- define "keypulse.claim" -}}
{{- $persistence := (index .root.Values .part).persistence -}}
{{- if and (include "keypulse.hasVolume" .) (not $persistence.existingClaim) -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  {{- include "keypulse.metadata" . | nindent 2 }}
  annotations:
    helm.sh/resource-policy: keep
spec:
  accessModes: [ReadWriteOnce]
  {{- with $persistence.storageClass }}
  storageClassName: {{ . | quote }}
  {{- end }}
  resources:
    requests: {storage: {{ $persistence.size | quote }}}
{{- end }}
{{- end }}
