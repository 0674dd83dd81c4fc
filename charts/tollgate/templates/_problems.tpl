{{/* What is wrong with the values and no schema can say, one sentence a line, all at once. */}}
{{- define "tollgate.problems" -}}
{{- include "tollgate.problems.replicas" . -}}
{{- include "tollgate.problems.drain" . -}}
{{- include "tollgate.problems.listeners" . -}}
{{- include "tollgate.problems.secretsInConfig" . -}}
{{- include "tollgate.problems.missing" . -}}
{{- include "tollgate.problems.environment" . -}}
{{- include "tollgate.problems.files" . -}}
{{- include "tollgate.problems.network" . -}}
{{- include "tollgate.problems.relay" . -}}
{{- end -}}

{{- define "tollgate.check" -}}
{{- with include "tollgate.problems" . | trim -}}
{{- fail (printf "\n\nThe values cannot be used:\n%s\n" .) -}}
{{- end -}}
{{- end -}}

{{- define "tollgate.problems.replicas" -}}
{{- $autoscaled := eq (include "tollgate.isAutoscaled" .) "yes" -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
- autoscaling.enabled and keda.enabled are both true, and KEDA makes an autoscaler of its own: turn one of them off
{{- end }}
{{- if gt (int64 .Values.autoscaling.minReplicas) (int64 .Values.autoscaling.maxReplicas) }}
- autoscaling.minReplicas is above autoscaling.maxReplicas: swap them
{{- end }}
{{- if and (eq (dig "broker" "kind" "memory" .Values.config) "memory") (or $autoscaled (gt (int64 .Values.replicaCount) 1)) }}
- config.broker.kind is memory, which one replica keeps to itself, and there may be more: set config.broker.kind to redis, or replicaCount to 1 and the autoscalers off
{{- end }}
{{- $limit := dig "limits" "connections" 100000 .Values.config | int64 }}
{{- if and $autoscaled (ge (int64 .Values.autoscaling.connectionsPerPod) $limit) }}
- autoscaling.connectionsPerPod is not below config.limits.connections ({{ $limit }}), so a pod would refuse sockets before another is started: lower the first to about two thirds of the second
{{- end }}
{{- end -}}

{{- define "tollgate.problems.drain" -}}
{{- $drain := include "tollgate.drainSeconds" . }}
{{- if not $drain }}
- config.drain.settle and config.drain.window have to be durations such as 5s or 1m 30s
{{- else if not (kindIs "invalid" .Values.terminationGracePeriodSeconds) }}
{{- $needed := include "tollgate.graceSeconds" . }}
{{- if lt (int64 .Values.terminationGracePeriodSeconds) (int64 $needed) }}
- terminationGracePeriodSeconds is {{ .Values.terminationGracePeriodSeconds }}, but config.drain takes {{ $drain }} s and 5 s more, so Kubernetes would kill the gateway while it sends sockets away: leave it empty, or set it to {{ $needed }} or more
{{- end }}
{{- end }}
{{- end -}}

{{- define "tollgate.problems.listeners" -}}
{{- $loopback := "^(127\\.|\\[::1\\]|localhost)" -}}
{{- $admin := dig "admin" "listen" "127.0.0.1:9000" .Values.config | toString -}}
{{- $public := dig "server" "listen" "0.0.0.0:8000" .Values.config | toString -}}
{{- if regexMatch $loopback $admin }}
- config.admin.listen is {{ $admin }}, where neither the probes nor Prometheus reach it: set it to 0.0.0.0:9000
{{- end }}
{{- if regexMatch $loopback $public }}
- config.server.listen is {{ $public }}, where no Service reaches it: set it to 0.0.0.0:8000
{{- end }}
{{- range $name, $address := dict "admin" $admin "server" $public }}
{{- if not (regexMatch ":[1-9][0-9]{3,4}$" $address) }}
- config.{{ $name }}.listen is {{ $address }}, and has to end in a port from 1024 to 65535, such as 0.0.0.0:8000: the container is not root, and Services need a fixed port
{{- end }}
{{- end }}
{{- if eq (include "tollgate.publicPort" .) (include "tollgate.adminPort" .) }}
- config.server.listen and config.admin.listen have the same port: give them two
{{- end }}
{{- end -}}

{{/* A ConfigMap is readable for many, and stays in Helm's history. Never quotes a value. */}}
{{- define "tollgate.problems.secretsInConfig" -}}
{{- $config := .Values.config -}}
{{- range $i, $key := dig "auth" "keys" (list) $config }}
{{- if $key.secret }}
- config.auth.keys[{{ $i }}].secret is a secret, and config becomes a ConfigMap: put it into a Secret, name that in secretFiles, and write secret_file: /run/secrets/NAME/KEY
{{- end }}
{{- $jwk := kindIs "string" $key.jwk | ternary $key.jwk "{}" | fromJson }}
{{- if or (hasKey $jwk "k") (hasKey $jwk "d") (hasKey $jwk "p") }}
- config.auth.keys[{{ $i }}].jwk holds a private key or a secret, and config becomes a ConfigMap: put it into a Secret, name that in secretFiles, and write jwks_file: /run/secrets/NAME/KEY
{{- end }}
{{- if contains "PRIVATE KEY" (toString $key.public_key_pem) }}
- config.auth.keys[{{ $i }}].public_key_pem holds a private key, which the gateway never needs: give it the public one
{{- end }}
{{- if regexMatch "://[^/]*@" (toString $key.jwks_url) }}
- config.auth.keys[{{ $i }}].jwks_url holds credentials, and config becomes a ConfigMap: use an address that needs none
{{- end }}
{{- end }}
{{- if dig "api" "keys" (list) $config }}
- config.api.keys are secrets, and config becomes a ConfigMap: put them into a Secret, one a line, name that in secretFiles, and set config.api.key_file to /run/secrets/NAME/KEY
{{- end }}
{{- if dig "auth" "session_cookie" "secrets" (list) $config }}
- config.auth.session_cookie.secrets are secrets, and config becomes a ConfigMap: put them into a Secret, name that in secretFiles, and list /run/secrets/NAME/KEY in config.auth.session_cookie.secret_files
{{- end }}
{{- if regexMatch "://[^/]*:[^/]*@" (dig "redis" "url" "" $config | toString) }}
- config.redis.url holds a password, and config becomes a ConfigMap: put the password into a Secret, name that in secretFiles, set config.redis.password_file to /run/secrets/NAME/KEY, and leave only the user before the @
{{- end }}
{{- if dig "redis" "sentinel_password" "" $config }}
- config.redis.sentinel_password is a secret, and config becomes a ConfigMap: put it into a Secret, name that in secretFiles, and set config.redis.sentinel_password_file to /run/secrets/NAME/KEY
{{- end }}
{{- if dig "callback" "secret" "" $config }}
- config.callback.secret is a secret, and config becomes a ConfigMap: put it into a Secret, name that in secretFiles, and set config.callback.secret_file to /run/secrets/NAME/KEY
{{- end }}
{{- if regexMatch "://[^/]*@" (dig "callback" "url" "" $config | toString) }}
- config.callback.url holds credentials, and config becomes a ConfigMap: take them out; what the application checks is the secret in callback.secret_file
{{- end }}
{{- end -}}

{{- define "tollgate.problems.missing" -}}
{{- $config := .Values.config -}}
{{- $keys := or (dig "auth" "keys" (list) $config) (hasKey .Values.secretEnv "TOLLGATE_AUTH__KEYS") -}}
{{- if not (or $keys (dig "auth" "session_cookie" "enabled" false $config) (dig "auth" "anonymous" false $config)) }}
- config.auth.keys is empty, so no token could ever be accepted: add {secret_file: /run/secrets/NAME/KEY} or {jwks_url: https://...}
{{- end }}
{{- $isRedis := eq (dig "broker" "kind" "memory" $config) "redis" -}}
{{- if and $isRedis (not (dig "redis" "url" "" $config)) (not (hasKey .Values.secretEnv "TOLLGATE_REDIS__URL")) }}
- config.broker.kind is redis, and there is no URL: set config.redis.url; its password comes from config.redis.password_file
{{- end }}
{{- end -}}

{{/* The environment is stronger than the file: what the chart computes with must not come from there. */}}
{{- define "tollgate.problems.environment" -}}
{{- $computed := "^TOLLGATE_(CONFIG|(SERVER|ADMIN)__LISTEN|DRAIN__.*|BROKER__KIND|LIMITS__CONNECTIONS)$" -}}
{{- $names := keys .Values.secretEnv -}}
{{- range .Values.extraEnv }}
{{- $names = append $names .name }}
{{- if and (regexMatch "^TOLLGATE_.+__|^TOLLGATE_CHANNELS$" .name) (hasKey . "value") (not (regexMatch $computed .name)) }}
- extraEnv has the setting {{ .name }} with its value: write it under config, or, if it is a secret, under secretEnv
{{- end }}
{{- end }}
{{- range $names | sortAlpha }}
{{- if regexMatch $computed . }}
- secretEnv or extraEnv has {{ . }}, and the chart computes ports, probes or the grace period from that setting: write it under config
{{- end }}
{{- end }}
{{- $wanted := dig "auth" "session_cookie" "secrets_env" (list) .Values.config }}
{{- range dig "auth" "keys" (list) .Values.config }}{{ with .secret_env }}{{ $wanted = append $wanted . }}{{ end }}{{ end }}
{{- range $wanted }}
{{- if not (has . $names) }}
- config names the environment variable {{ . }}, which the pod does not have: write secretEnv.{{ . }}: {secretName: NAME, key: KEY}
{{- end }}
{{- end }}
{{- end -}}

{{/* The files that a tree such as `config` names, one a line. */}}
{{- define "tollgate.configFiles" -}}
{{- $paths := concat (list (dig "api" "key_file" "" .)) (dig "auth" "session_cookie" "secret_files" (list) .) -}}
{{- range dig "auth" "keys" (list) . }}{{ $paths = concat $paths (list .secret_file .jwks_file .public_key_file) }}{{ end }}
{{- with .redis }}{{ $paths = concat $paths (list .ca_file .cert_file .key_file .password_file .sentinel_password_file) }}{{ end }}
{{- with .relay }}{{ $paths = concat $paths (list .ca_file .password_file) }}{{ end }}
{{- $paths = concat $paths (list (dig "auth" "jwks" "ca_file" "" .) (dig "callback" "secret_file" "" .)) }}
{{- $paths | compact | join "\n" }}
{{- end -}}

{{/* What is under /run/secrets comes from secretFiles or an own mount; and what is mounted is used, or a pod would wait for
a Secret that nobody needs. */}}
{{- define "tollgate.problems.files" -}}
{{- $used := dict -}}
{{- range include "tollgate.configFiles" .Values.config | splitList "\n" | compact }}
{{- $path := . }}
{{- $name := regexReplaceAll "^/run/secrets/([^/]*)/.*$" $path "$1" }}
{{- $_ := set $used $name true }}
{{- $isMounted := or (not (hasPrefix "/run/secrets/" $path)) (hasKey $.Values.secretFiles $name) }}
{{- range $.Values.extraVolumeMounts }}{{ if hasPrefix .mountPath $path }}{{ $isMounted = true }}{{ end }}{{ end }}
{{- if not $isMounted }}
- config names the file {{ $path }}, which the pod does not have: write secretFiles.{{ $name }}: {secretName: NAME}
{{- end }}
{{- end }}
{{- range $name, $_ := .Values.secretFiles }}
{{- if not (hasKey $used $name) }}
- secretFiles.{{ $name }} is used by nothing, and the pods would still wait for its Secret: name /run/secrets/{{ $name }}/KEY in config, or set secretFiles.{{ $name }} to null
{{- end }}
{{- end }}
{{- end -}}

{{- define "tollgate.problems.network" -}}
{{- with .Values.networkPolicy }}
{{- if .enabled }}
{{- if and $.Values.metrics.serviceMonitor.enabled (not .adminFrom) }}
- networkPolicy.adminFrom is empty, so Prometheus could not reach what the ServiceMonitor names: say where Prometheus is
{{- end }}
{{- $asks := dig "callback" "url" "" $.Values.config }}
{{- range dig "auth" "keys" (list) $.Values.config }}{{ $asks = or $asks .jwks_url }}{{ end }}
{{- if and $asks (not .extraEgress) }}
- networkPolicy.enabled is true, and config has a jwks_url or callback.url that the gateway could not reach: write a rule for it into networkPolicy.extraEgress, such as {ports: [{port: 443, protocol: TCP}]}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.gatewayApi.enabled (not .Values.gatewayApi.parentRefs) }}
- gatewayApi.parentRefs is empty, so the route would belong to no Gateway: name yours, such as {name: gateway, namespace: gateways}
{{- end }}
{{- end -}}
