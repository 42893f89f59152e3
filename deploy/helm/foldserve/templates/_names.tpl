{{- define "foldserve.labels" -}}
app.kubernetes.io/name: foldserve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "foldserve.name" -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "foldserve.image" -}}
{{ .repository }}:{{ .tag }}
{{- end }}
