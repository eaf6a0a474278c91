package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// registry is the bucket: compare-and-set writes, with a TTL where one is asked for.
type registry struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	workers jetstream.KeyValue
	// When the group began, by the server's clock.
	begin time.Time
}

func openRegistry(ctx context.Context, nc *nats.Conn) (*registry, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, events)
	if err != nil {
		return nil, fmt.Errorf("the stream %s, which a proxy makes: %w", events, err)
	}
	replicas := stream.CachedInfo().Config.Replicas
	workers, err := js.KeyValue(ctx, bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		workers, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: bucket, History: 1, Replicas: replicas,
			// Single keys end, and leave a mark for those who watch.
			LimitMarkerTTL: time.Minute,
		})
	}
	if err != nil {
		return nil, err
	}
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{
		Name: dead, Subjects: []string{prefix + ".dead.*"}, MaxAge: 7 * 24 * time.Hour, MaxBytes: 1 << 30,
		Duplicates: 2 * time.Minute, AllowDirect: true, Replicas: replicas,
	})
	if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil, err
	}
	registry := &registry{nc: nc, js: js, workers: workers}
	// The first worker that asks decides where the group begins.
	if _, err := registry.put(ctx, "begin", map[string]any{"version": "go"}, 0); err != nil && !isConflict(err) {
		return nil, err
	}
	entry, err := workers.Get(ctx, group+".begin")
	if err != nil {
		return nil, err
	}
	registry.begin = entry.Created()
	return registry, nil
}

// put writes if the key's last revision is this one (0: there is none); returns the new one.
func (r *registry) put(ctx context.Context, key string, value any, revision uint64, opts ...jetstream.PublishOpt) (uint64, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return 0, err
	}
	message := nats.NewMsg("$KV." + bucket + "." + group + "." + key)
	message.Data = data
	return r.write(ctx, message, revision, opts...)
}

func (r *registry) remove(ctx context.Context, key string, revision uint64, opts ...jetstream.PublishOpt) (uint64, error) {
	message := nats.NewMsg("$KV." + bucket + "." + group + "." + key)
	message.Header.Set("KV-Operation", "DEL")
	return r.write(ctx, message, revision, opts...)
}

// write is a plain publish: the functions of KeyValue lose the TTL of a key.
func (r *registry) write(ctx context.Context, message *nats.Msg, revision uint64, opts ...jetstream.PublishOpt) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stored, err := r.js.PublishMsg(ctx, message, append(opts, jetstream.WithExpectLastSequencePerSubject(revision))...)
	if err != nil {
		return 0, err
	}
	return stored.Sequence, nil
}

// isConflict says that somebody else wrote the key since, or that it has ended.
func isConflict(err error) bool {
	var problem *jetstream.APIError
	return errors.As(err, &problem) &&
		(problem.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || problem.ErrorCode == 10164)
}

// lease is the member's key. Whoever works under it asks, by the monotonic clock, before it begins anything.
type lease struct {
	registry       *registry
	worker, member string
	since          int64

	mutex    sync.Mutex
	revision uint64
	end      time.Time
	leaving  bool
}

func newLease(registry *registry) *lease {
	worker := fmt.Sprintf("go-%d", os.Getpid())
	// One life of one worker, never used again.
	member := worker + "-" + rand.Text()[:8]
	return &lease{registry: registry, worker: worker, member: member, since: time.Now().UnixMilli()}
}

func (l *lease) key() string {
	return "member." + l.member
}

func (l *lease) renew(ctx context.Context, leaving bool) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.leaving = l.leaving || leaving
	sent := time.Now()
	record := map[string]any{"worker": l.worker, "since_unix_ms": l.since, "leaving": l.leaving}
	revision, err := l.registry.put(ctx, l.key(), record, l.revision, jetstream.WithMsgTTL(leaseTTL))
	if err != nil {
		return err
	}
	l.revision, l.end = revision, sent.Add(leaseTTL-leaseMargin)
	return nil
}

// keep renews until the life ends, and ends it when the lease is lost.
func (l *lease) keep(ctx context.Context, end context.CancelCauseFunc) {
	tick := time.NewTicker(leaseTTL / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// An answer after the TTL is of no use; without one the lease stops being valid by itself.
		limit, cancel := context.WithTimeout(ctx, leaseTTL)
		if err := l.renew(limit, false); isConflict(err) {
			entry, err := l.registry.workers.Get(limit, group+"."+l.key())
			if errors.Is(err, jetstream.ErrKeyNotFound) {
				cancel()
				end(fmt.Errorf("%w: the lease has ended", errLost))
				return
			}
			if err == nil {
				// Ours, from a write whose answer got lost: nobody else uses this key.
				l.mutex.Lock()
				l.revision = entry.Revision()
				l.mutex.Unlock()
			}
		}
		cancel()
	}
}

func (l *lease) isValid() bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return time.Now().Before(l.end)
}

// valid waits until the lease is, or the context ends.
func (l *lease) valid(ctx context.Context) error {
	for !l.isValid() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return ctx.Err()
}

// giveUp ends the key at once.
func (l *lease) giveUp() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.end = time.Time{}
	// Failing that it ends by itself.
	_, _ = l.registry.remove(context.Background(), l.key(), l.revision, jetstream.WithMsgTTL(time.Minute))
}
