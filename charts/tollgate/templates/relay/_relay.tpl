{{/*
What the relay reads of the configuration, as JSON: nothing of `config` that names a Secret it has no part in. `callback.url`
is there because rules with `allow: callback` are refused without one.
*/}}
{{- define "tollgate.relay.config" -}}
{{- $config := pick .Values.config "admin" "broker" "channels" "history" "limits" "log" "redis" -}}
{{- with dig "callback" "url" "" .Values.config }}{{ $_ := set $config "callback" (dict "url" .) }}{{ end -}}
{{- mergeOverwrite (deepCopy $config) .Values.relay.config | toJson -}}
{{- end -}}

{{/* The files that it names. */}}
{{- define "tollgate.relay.configFiles" -}}
{{- include "tollgate.configFiles" (include "tollgate.relay.config" . | fromJson) -}}
{{- end -}}

{{/* Its own Secrets, and those of the gateway that it needs for Redis. */}}
{{- define "tollgate.relay.secretFiles" -}}
{{- $found := dict -}}
{{- range include "tollgate.relay.configFiles" . | splitList "\n" | compact }}
{{- $name := regexFind "^/run/secrets/[^/]+/" . | trimPrefix "/run/secrets/" | trimSuffix "/" }}
{{- if hasKey $.Values.secretFiles $name }}{{ $_ := set $found $name (get $.Values.secretFiles $name) }}{{ end }}
{{- end }}
{{- merge (deepCopy .Values.relay.secretFiles) $found | toJson -}}
{{- end -}}

{{- define "tollgate.relay.secretEnv" -}}
{{- $found := dict -}}
{{- range $name, $ref := .Values.secretEnv }}
{{- if hasPrefix "TOLLGATE_REDIS__" $name }}{{ $_ := set $found $name $ref }}{{ end }}
{{- end }}
{{- merge (deepCopy .Values.relay.secretEnv) $found | toJson -}}
{{- end -}}

{{/* Its own mounts, and those of the gateway that hold a file of its configuration, such as Redis' authority. As a pair of
lists: mounts and volumes. */}}
{{- define "tollgate.relay.extraVolumes" -}}
{{- $files := include "tollgate.relay.configFiles" . | splitList "\n" | compact -}}
{{- $mounts := .Values.relay.extraVolumeMounts -}}
{{- $volumes := .Values.relay.extraVolumes -}}
{{- range $mount := .Values.extraVolumeMounts }}
{{- $isUsed := false }}
{{- range $files }}{{ if hasPrefix (printf "%s/" (trimSuffix "/" $mount.mountPath)) . }}{{ $isUsed = true }}{{ end }}{{ end }}
{{- range $.Values.relay.extraVolumeMounts }}{{ if eq .name $mount.name }}{{ $isUsed = false }}{{ end }}{{ end }}
{{- if $isUsed }}
{{- $mounts = append $mounts $mount }}
{{- range $.Values.extraVolumes }}{{ if and (eq .name $mount.name) (not (has . $volumes)) }}{{ $volumes = append $volumes . }}{{ end }}{{ end }}
{{- end }}
{{- end }}
{{- dict "mounts" $mounts "volumes" $volumes | toJson -}}
{{- end -}}
