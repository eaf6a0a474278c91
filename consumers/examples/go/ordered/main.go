// Ordered events: each guild's events one after the other, on any number of these processes.
//
// The shard is the unit: each shard has a durable consumer <group>-<shard>, held by one process at a
// time. This is the protocol of Events::ordered in the Rust library, to the letter, so that workers in
// both languages can share a group:
//
//   - The bucket discord_workers says who lives (<group>.member.<name>, a key with a TTL, renewed: the
//     lease on all shards of its process) and who holds what (<group>.shard.<n>, compare-and-set).
//   - Everybody decides for itself by the same rule (plan) what to take and what to give up.
//   - A lease cannot stop what a frozen process has asked for. The server can: a shard's consumer
//     delivers to one pinned client, and who takes a shard unpins the one before.
//   - Before anything begins, all that the server has delivered and not seen acknowledged must be in
//     hand: what the holder before did not finish comes first.
//
// After a lost connection or lease the process gives up everything and joins again. Events in flight
// at that moment are handled again, before any later one of their guild.
//
//	NATS_URL=nats://127.0.0.1:4222 go run ./ordered
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// How long a process may be silent until its shards go to others, in whole seconds.
	leaseTTL = 2 * time.Second
	// How much earlier than the server's our own end of the lease is.
	leaseMargin = 150 * time.Millisecond
	// Events of a shard in hand at most; the server is told of each three times per ackWait.
	window  = 256
	ackWait = time.Second
	// Handlers at once, over all shards.
	concurrency = 64
	// Longest wait for one answer.
	patience = 5 * time.Second
	// The priority group of a shard's consumer.
	holder = "holder"
)

var (
	prefix = cmp.Or(os.Getenv("SUBJECT_PREFIX"), "discord")
	events = strings.ToUpper(prefix) + "_EVENTS"
	dead   = strings.ToUpper(prefix) + "_DEAD"
	bucket = prefix + "_workers"
	group  = cmp.Or(os.Getenv("CONSUMER_NAME"), "go-ordered")
	// Events this program handles; of every shard.
	names = []string{"MESSAGE_CREATE", "MESSAGE_DELETE", "PROXY_GAP"}
	// These speak of the whole shard: nothing else of it is handled meanwhile.
	alone = []string{"READY", "RESUMED", "PROXY_GAP", "PROXY_SHARD", "PROXY_RESHARD"}
	// Pauses after the first failed attempt, the second, ...: the guild waits, others go on.
	pauses = []time.Duration{250 * time.Millisecond, time.Second, 3 * time.Second, 8 * time.Second}

	errLost = errors.New("the lease, the connection or a consumer is not what it was")
)

// handle is yours. An error means: try again. The event's guild waits until it is done. The context
// ends when another process has the shard.
func handle(_ context.Context, event json.RawMessage, shard int, guild, name, messageID string) error {
	if name == "PROXY_GAP" {
		fmt.Printf("gap on shard %d: events before this one may be missing: %s\n", shard, event)
		return nil
	}
	fmt.Printf("shard %d guild %s %s %s\n", shard, guild, messageID, name)
	return nil
}

// view is what a process sees of its group.
type view struct {
	members map[string]bool // name -> leaving
	holders map[int]string  // shard -> name
	shards  map[int]bool    // all there are
}

// plan says what to take and what to give up. Pure, and the same everywhere.
func plan(me string, view view) (take, give []int) {
	held := map[string]int{}
	var mine, free []int
	for shard, holder := range view.holders {
		held[holder]++
		if holder == me {
			mine = append(mine, shard)
		}
	}
	slices.Sort(mine)
	if leaving, member := view.members[me]; leaving || !member {
		return nil, mine
	}
	var staying []string
	for name, leaving := range view.members {
		if !leaving {
			staying = append(staying, name)
		}
	}
	// Whoever holds most keeps the one more that cannot be divided: the fewest moves.
	slices.SortFunc(staying, func(a, b string) int {
		return cmp.Or(cmp.Compare(held[b], held[a]), strings.Compare(a, b))
	})
	quota := func(rank int) int {
		each, more := len(view.shards)/len(staying), len(view.shards)%len(staying)
		if rank < more {
			each++
		}
		return each
	}
	rank := slices.Index(staying, me)
	if len(mine) > quota(rank) {
		return nil, mine[quota(rank):]
	}
	for shard := range view.shards {
		if _, lives := view.members[view.holders[shard]]; !lives {
			free = append(free, shard)
		}
	}
	slices.Sort(free)
	// Those before us take theirs first, so that not everybody claims the same shard.
	before := 0
	for other := range rank {
		before += max(quota(other)-held[staying[other]], 0)
	}
	from := min(before, len(free))
	return free[from:min(from+quota(rank)-len(mine), len(free))], nil
}

func main() {
	stopping, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	lost := make(chan struct{}, 1)
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL), nats.MaxReconnects(-1),
		nats.ReconnectWait(250*time.Millisecond),
		nats.ReconnectHandler(func(*nats.Conn) { fmt.Println("NATS is back") }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // else it is us
				fmt.Println("NATS is away")
			}
			select {
			case lost <- struct{}{}:
			default:
			}
		}))
	if err != nil {
		log.Fatal(err)
	}
	registry, err := openRegistry(stopping, nc)
	if err != nil {
		log.Fatal(err)
	}
	for stopping.Err() == nil {
		select {
		case <-lost:
		default:
		}
		if err := newLife(registry).run(stopping, lost); err != nil {
			log.Printf("joining the group again: %v", err)
			time.Sleep(250 * time.Millisecond)
		}
	}
	if err := nc.Flush(); err != nil {
		log.Print(err)
	}
	nc.Close()
}

// life lasts from joining the group to leaving it, or to the loss of the lease or the connection.
type life struct {
	registry  *registry
	lease     *lease
	view      view
	revisions map[int]uint64
	loaded    bool // before, the living look dead
	leaving   bool
	held      map[int]*shard
	ended     chan int
	slots     chan struct{}
}

func newLife(registry *registry) *life {
	return &life{
		registry:  registry,
		lease:     newLease(registry),
		view:      view{map[string]bool{}, map[int]string{}, map[int]bool{}},
		revisions: map[int]uint64{},
		held:      map[int]*shard{},
		ended:     make(chan int),
		slots:     make(chan struct{}, concurrency),
	}
}

func (l *life) run(stopping context.Context, lost <-chan struct{}) error {
	ctx, end := context.WithCancelCause(context.Background())
	defer func() {
		end(errLost)
		// Handlers see their context end.
		for len(l.held) > 0 {
			delete(l.held, <-l.ended)
		}
		// At once, rather than with its TTL: nothing of ours runs any more.
		if l.registry.nc.IsConnected() {
			l.lease.giveUp()
		}
	}()
	if err := l.lease.renew(ctx, false); err != nil {
		return err
	}
	go l.lease.keep(ctx, end)
	workers, err := l.registry.workers.Watch(ctx, group+".>")
	if err != nil {
		return err
	}
	fleet, err := l.registry.js.KeyValue(ctx, prefix+"_fleet")
	if err != nil {
		return err
	}
	shards, err := fleet.Watch(ctx, "shard.*.*")
	if err != nil {
		return err
	}
	tick, stopped := time.NewTicker(500*time.Millisecond), stopping.Done()
	defer tick.Stop()
	for !l.leaving || len(l.held) > 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-lost:
			return errLost
		case <-stopped:
			stopped, l.leaving = nil, true
			if err := l.lease.renew(ctx, true); err != nil && !isConflict(err) {
				return err
			}
		case entry := <-workers.Updates():
			l.apply(entry)
		case entry := <-shards.Updates():
			if entry != nil {
				if shard, ok := shardOf(entry.Key()); ok {
					l.view.shards[shard] = true
				}
			}
		case shard := <-l.ended:
			delete(l.held, shard)
			fmt.Printf("shard %d released\n", shard)
		case <-tick.C:
		}
		if err := l.look(ctx); err != nil {
			return err
		}
	}
	return nil
}

// shardOf reads the number at the end of a key.
func shardOf(key string) (shard int, ok bool) {
	_, err := fmt.Sscan(key[strings.LastIndexByte(key, '.')+1:], &shard)
	return shard, err == nil
}

// apply takes one entry into the view.
func (l *life) apply(entry jetstream.KeyValueEntry) {
	if entry == nil {
		l.loaded = true
		return
	}
	key := strings.Split(entry.Key(), ".")
	var value struct {
		Leaving bool   `json:"leaving"`
		Member  string `json:"member"`
	}
	put := entry.Operation() == jetstream.KeyValuePut && json.Unmarshal(entry.Value(), &value) == nil
	switch {
	case len(key) != 3:
	case key[1] == "member":
		delete(l.view.members, key[2])
		if put {
			l.view.members[key[2]] = value.Leaving
		}
	case key[1] == "shard":
		// Our own writes are known before the watch tells of them, and of older ones.
		if shard, ok := shardOf(entry.Key()); ok && entry.Revision() >= l.revisions[shard] {
			l.claimed(shard, entry.Revision(), value.Member)
		}
	}
}

func (l *life) claimed(shard int, revision uint64, member string) {
	l.revisions[shard] = revision
	delete(l.view.holders, shard)
	if member != "" {
		l.view.holders[shard] = member
		l.view.shards[shard] = true
	}
	if held := l.held[shard]; held != nil && member != l.lease.member {
		held.lose() // another worker took it
	}
}

// look does what the plan says.
func (l *life) look(ctx context.Context) error {
	me := l.lease.member
	for shard, member := range l.view.holders {
		if member != me || l.held[shard] != nil {
			continue
		}
		revision, err := l.registry.remove(ctx, shardKey(shard), l.revisions[shard])
		if err == nil {
			l.claimed(shard, revision, "")
		} else if !isConflict(err) { // after a conflict the watch will tell
			return err
		}
	}
	if !l.loaded || !l.lease.isValid() {
		return nil
	}
	l.view.members[me] = l.leaving
	take, give := plan(me, l.view)
	for _, shard := range give {
		if held := l.held[shard]; held != nil {
			held.giveUp()
		}
	}
	for _, number := range take {
		if l.held[number] != nil {
			continue // not given up entirely yet
		}
		claim := map[string]any{"member": me, "since_unix_ms": time.Now().UnixMilli()}
		revision, err := l.registry.put(ctx, shardKey(number), claim, l.revisions[number])
		if err == nil {
			fmt.Printf("shard %d taken\n", number)
			l.held[number] = hold(ctx, number, l)
			l.claimed(number, revision, me)
		} else if !isConflict(err) { // after a conflict another worker was faster
			return err
		}
	}
	return nil
}

func shardKey(shard int) string {
	return fmt.Sprintf("shard.%d", shard)
}
